"""Which graphs of a bundle serve on this machine: int8 where the golden vectors prove it here, fp32 otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.detector import Detector, Precision, check_golden
from inference.runtimes import Runtime
from infomae_stream.bundle import Bundle
from infomae_stream.errors import BundleError

Wanted = Literal["auto", "fp32", "int8"]


@dataclass(frozen=True, slots=True)
class Proven:
    """A detector that passed its golden vectors here. int8_refused: why it is not the int8 one that was to be tried."""

    detector: Detector
    int8_refused: BundleError | None = None


def prove(bundle: Bundle, runtime: Runtime, wanted: Wanted) -> Proven:
    """Load the graphs and run the golden vectors. auto: int8 if the bundle has it and it passes, else fp32.

    Raises BundleError (contract, golden or runtime) when the graphs that are wanted do not pass; with auto, when fp32
    does not.
    """
    refused: BundleError | None = None
    if wanted == "int8" or (wanted == "auto" and bundle.manifest.has_int8):
        try:
            return Proven(_checked(bundle, runtime, "int8"))
        except BundleError as e:
            if wanted == "int8":
                raise
            refused = e
    return Proven(_checked(bundle, runtime, "fp32"), refused)


def _checked(bundle: Bundle, runtime: Runtime, precision: Precision) -> Detector:
    detector = Detector(bundle, runtime, precision)
    check_golden(detector)
    return detector
