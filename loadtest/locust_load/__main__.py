"""`remontoir locust`: Locust with loadtest/locustfile.py, and help that shows its options too."""

import argparse
import importlib.util
import sys
from pathlib import Path

LOCUSTFILE = Path(__file__).parent.parent / "locustfile.py"
EXAMPLES = """\
Examples, with a gateway on port 8000 (remontoir serve --emulate clockwork-v100:1):

  remontoir locust                                   # the web page: http://localhost:8089
  remontoir locust --headless -u 20 -t 30s --slo-ms 25:1,250:4
  remontoir locust --headless -u 50 -t 60s --arrivals open --rate-per-user 2 --csv results/open
  remontoir locust --headless --shape steps --steps 5:20,20:20,80:20 --arrivals open
  remontoir locust --headless --shape trace --peak-rate 80 --min-attainment 0.95
  remontoir locust --headless --processes 4 -u 400 -t 60s   # a master and 4 workers
  remontoir locust --master                          # and on other machines:
  remontoir locust --worker --master-host ADDRESS

All of Locust's own options go here as well: `locust --help`.
"""


def main(arguments: list[str]) -> None:
    if importlib.util.find_spec("locust") is None:
        sys.exit("remontoir locust: Locust is missing; pip install 'remontoir[loadtest]'")
    if {"-h", "--help"} & set(arguments):
        _show_help()
        return
    from locust.main import main as locust

    sys.argv = ["locust", *([] if _has_locustfile(arguments) else ["-f", str(LOCUSTFILE)])]
    sys.argv += arguments
    locust()


def _has_locustfile(arguments: list[str]) -> bool:
    return any(
        argument in ("-f", "--locustfile") or argument.startswith("--locustfile=")
        for argument in arguments
    )


def _show_help() -> None:
    """Locust prints its help before it has read any locustfile, so without the file's options."""
    from locust.argument_parser import LocustArgumentParser

    from loadtest.locust_load.options import add_options

    parser = LocustArgumentParser(
        prog="remontoir locust",
        usage="remontoir locust [options of this file] [options of Locust]",
        description="Load a gateway with requests that have latency objectives (SLOs), with "
        "Locust: users and a live web page, or --headless; what came in time, and CSV.",
        epilog=EXAMPLES,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_config_file_help=False,
        add_env_var_help=True,
    )
    add_options(parser)
    parser.print_help()


if __name__ == "__main__":
    main(sys.argv[1:])
