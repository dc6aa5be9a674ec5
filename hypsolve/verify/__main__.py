"""Command line of the verifier: `python -m hypsolve.verify INSTANCE.json RESULT.json`."""

import sys
from pathlib import Path

from hypsolve.formats import instance_json
from hypsolve.problem import files
from hypsolve.problem.serving import ServingInstance
from hypsolve.verify import Refuted, verify
from hypsolve.verify.reading import not_covered
from hypsolve.verify.serving_claims import serving_not_covered

USAGE = """python -m hypsolve.verify INSTANCE.json RESULT.json

Check a result (written by Result.save or ServingResult.save) against its instance (written by
hypsolve.save), without a solver and without code of the method. For a serving instance, rates
and latencies are those of the fluid model, and nothing is said about simulations. Prints
"verified" and the fields that the check does not cover, and exits with status 0; or prints
"refuted" with the first claim that does not hold, and exits with status 1. Status 2: a file
cannot be read, or memory is too small. Status 130: Ctrl-C."""


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status; see USAGE."""
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if len(arguments) != 2:
        print("verify: give two files, INSTANCE.json and RESULT.json", file=sys.stderr)
        return 2
    try:
        return _answer(arguments[0], Path(arguments[1]))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"verify: {where}{error.strerror or error}", file=sys.stderr)
    except ValueError as error:
        print(f"verify: {error}", file=sys.stderr)
    except (MemoryError, KeyboardInterrupt) as reason:
        print("verify: stopped; nothing is verified or refuted", file=sys.stderr)
        return 130 if isinstance(reason, KeyboardInterrupt) else 2
    return 2


def _answer(of_instance: str, path: Path) -> int:
    instance = instance_json.load(of_instance)
    result = files.parse_json(path, files.read_bytes(path, files.MAX_BYTES))
    try:
        found = verify(instance, result, lambda line: print(f"verify: {line}", file=sys.stderr))
    except Refuted as reason:
        print(f"refuted: {reason}")
        return 1
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    print(f"verified: {found}")
    is_serving = isinstance(instance, ServingInstance)
    left_out = serving_not_covered(result) if is_serving else not_covered(result)
    print(f"not covered: {', '.join(left_out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
