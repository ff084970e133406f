"""What sona does inside other libraries. Each module needs its own extra; importing this package needs none."""
