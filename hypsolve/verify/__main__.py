"""`python -m hypsolve.verify INSTANCE.json RESULT.json`."""

import sys
from pathlib import Path

from hypsolve import io
from hypsolve.verify import Refuted, verify


def main(arguments: list[str]) -> int:
    """Run the command line; return its exit status: 0 verified, 1 refuted, 2 wrong files."""
    if len(arguments) != 2:
        print("verify: needs two files, INSTANCE.json and RESULT.json", file=sys.stderr)
        return 2
    path = Path(arguments[1])
    try:
        instance = io.load(arguments[0])
        result = io.parse_json(path, io.read_bytes(path, io.MAX_BYTES))
    except (OSError, ValueError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    try:
        print(f"verified: {verify(instance, result)}")
    except Refuted as reason:
        print(f"refuted: {reason}")
        return 1
    except ValueError as error:
        print(f"verify: {path}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, KeyboardInterrupt):
        print("verify: stopped before anything was certain", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
