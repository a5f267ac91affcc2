"""Every error of this package: a `FreezeError`, which is a `ValueError`."""


class FreezeError(ValueError):
    """Base class. The message says what was asked, what was found, and what to do."""


class PatternError(FreezeError):
    """A pattern that selects nothing."""


class PlanError(FreezeError):
    """A schedule or arguments that cannot work."""


class OptimizerError(FreezeError):
    """An optimizer or scheduler that cannot be regrouped."""


class ResumeError(FreezeError):
    """A checkpoint that does not fit the run that loads it."""


class UnsupportedStrategyError(FreezeError):
    """A Lightning strategy, or one of its options, under which freezing would be wrong."""


class FreezeViolation(FreezeError):
    """Something that was declared frozen has moved, or something trainable cannot train."""
