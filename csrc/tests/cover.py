"""Share of lines and branches of csrc that were run: `cover.py LINES BRANCHES DIRECTORY ...` fails below those percentages of all files.

The directories hold what gcc --coverage wrote. A line of a header counts as run when one of the objects that include it ran it.
With --missing it also prints what was not run.
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1]


def reports(directory: Path) -> list[dict]:
    """What gcov says of each object in a directory that was run."""
    notes = [path.with_suffix(".gcno") for path in sorted(directory.glob("**/*.gcda"))]
    done = subprocess.run(["gcov", "--json-format", "--branch-probabilities", "--stdout", *map(str, notes)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--missing"]
    least = float(arguments[0]), float(arguments[1])
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    branches: dict[str, dict[tuple, int]] = defaultdict(lambda: defaultdict(int))
    for directory in map(Path, arguments[2:]):
        for report in reports(directory):
            for file in report["files"]:
                path = (Path(report["current_working_directory"]) / file["file"]).resolve()
                if not path.is_relative_to(CSRC / "src") and not path.is_relative_to(CSRC / "include"):
                    continue
                name = str(path.relative_to(CSRC))
                for line in file["lines"]:
                    number = line["line_number"]
                    lines[name][number] += line["count"]
                    for index, branch in enumerate(line["branches"]):
                        branches[name][number, len(line["branches"]), index] += branch["count"]
    if not lines:
        sys.exit("nothing was run")
    total = [0, 0, 0, 0]
    for name in sorted(lines):
        run = [sum(map(bool, lines[name].values())), len(lines[name]), sum(map(bool, branches[name].values())), len(branches[name])]
        total = [a + b for a, b in zip(total, run, strict=True)]
        print(f"{name:32} {100 * run[0] / run[1]:6.1f} % of {run[1]:5} lines {100 * run[2] / max(run[3], 1):6.1f} % of {run[3]:5} branches")
        if "--missing" in sys.argv:
            print("    lines   ", *(n for n, count in sorted(lines[name].items()) if not count))
            print("    branches", *(f"{at[0]}.{at[2]}" for at, count in sorted(branches[name].items()) if not count))
    shares = 100 * total[0] / total[1], 100 * total[2] / total[3]
    print(f"{'all':32} {shares[0]:6.1f} % of {total[1]:5} lines {shares[1]:6.1f} % of {total[3]:5} branches")
    if shares[0] < least[0] or shares[1] < least[1]:
        sys.exit(f"expected at least {least[0]:g} % of lines and {least[1]:g} % of branches")


if __name__ == "__main__":
    main()
