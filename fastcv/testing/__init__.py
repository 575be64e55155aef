"""The shape tables and the rules by which fastcv's answers are judged; tests and benchmarks read the same."""

from .cases import CASES, Case, cases_of
from .compare import assert_close, check_case, max_error
from .every_variant import check_variants, runnable_variants, serves

__all__ = ["CASES", "Case", "assert_close", "cases_of", "check_case", "check_variants", "max_error", "runnable_variants", "serves"]
