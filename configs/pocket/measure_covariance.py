"""Measures the text metric that the package ships for the pocket base: C over 100,000 captions of its own.

    python configs/pocket/measure_covariance.py [--captions 100000] [--out jaxbooth/pocket/covariance.safetensors]

Run it again whenever the pocket base's text encoder is trained further. Needs a minute on two cores.
"""

import argparse
from pathlib import Path

import jaxbooth
from jaxbooth.merging.covariance import save_covariance
from jaxbooth.pocket import BASE, COVARIANCE
from jaxbooth.text_metric import measure, text_digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=COVARIANCE)
    arguments = parser.parse_args()
    save_covariance(measure(jaxbooth.load_pipeline("pocket"), text_digest(BASE), arguments.captions), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
