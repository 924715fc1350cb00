"""Run every line of the fenced `sh` blocks of a Markdown file, in order, from the current folder.

python3 .ci/readme_commands.py README.md
"""

import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of all `sh` blocks; a line that ends in a backslash goes on in the next."""
    joined = "".join(BLOCK.findall(text)).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def main() -> None:
    """Stop at the first command that fails."""
    found = commands(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"{sys.argv[1]}: no command found")
    for command in found:
        print(f"\n$ {command}", flush=True)
        done = subprocess.run(["bash", "-c", command], check=False)
        if done.returncode:
            sys.exit(f"failed with {done.returncode}: {command}")


if __name__ == "__main__":
    main()
