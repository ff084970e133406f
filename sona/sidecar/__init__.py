"""The sidecar: a process that learns from what a C program puts into a shared ring, and gives the weights back through shared memory."""
