"""`python -m hypsolve.verify INSTANCE.json RESULT.json`."""

import sys
from pathlib import Path
from typing import Any

from hypsolve import io
from hypsolve.verify import Refuted, verify

USAGE = """python -m hypsolve.verify INSTANCE.json RESULT.json

Check a result (Result.save) against its instance (hypsolve.save) with no solver and no code of
a method. Prints verified, with exit status 0, or refuted, with 1 and the first claim that does
not hold; the status is 2 if these are not such files, or nothing became certain."""


def main(arguments: list[str]) -> int:
    """Run the command line; return its exit status: 0 verified, 1 refuted, 2 wrong files."""
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if len(arguments) != 2:
        print("verify: needs two files, INSTANCE.json and RESULT.json", file=sys.stderr)
        return 2
    path = Path(arguments[1])
    try:
        instance = io.load(arguments[0])
        result = io.parse_json(path, io.read_bytes(path, io.MAX_BYTES))
    except OSError as error:
        print(f"verify: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    try:
        n_searched = _n_searched(result)
        if n_searched:
            print(
                f"verify: enumerates the schedules of {n_searched} partitions: this may take"
                " minutes",
                file=sys.stderr,
            )
        print(f"verified: {verify(instance, result)}")
    except Refuted as reason:
        print(f"refuted: {reason}")
        return 1
    except ValueError as error:
        print(f"verify: {path}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, KeyboardInterrupt) as reason:
        print("verify: stopped before anything was certain", file=sys.stderr)
        return 130 if isinstance(reason, KeyboardInterrupt) else 2
    return 0


def _n_searched(result: Any) -> int:
    """How many boxes are to be searched; nothing is known yet of the result."""
    certificate = result.get("certificate") if isinstance(result, dict) else None
    boxes = certificate.get("boxes") if isinstance(certificate, dict) else None
    found = boxes if isinstance(boxes, list) else []
    return sum(isinstance(box, dict) and box.get("how") == "search" for box in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
