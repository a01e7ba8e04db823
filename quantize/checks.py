"""What must be known of a model before it is planned."""

from gemcut.errors import PlanError, SensitivityError
from gemcut.gguf_experts import is_stack
from gemcut.quantize.identity import fingerprint
from gemcut.quantize.outcome import Task


def check_sensitivity(task: Task) -> tuple[str, ...]:
    """What should be known of a task's sensitivity; reads a row of every tensor.

    Raises:
        SensitivityError: it was measured on another model.
    """
    model, sensitivity = task.model, task.sensitivity
    if task.request.per_expert:
        _check_experts(task)
    if sensitivity is None:
        return ()
    if model.files and sensitivity.source != fingerprint(model):
        raise SensitivityError(
            "the sensitivity was measured on another model than this source: measure it anew"
        )
    if sensitivity.imatrix == task.imatrix:
        return ()
    return ("the errors were measured with another importance matrix than the file is cut with",)


def _check_experts(task: Task) -> None:
    """Raise PlanError or SensitivityError if nothing is known of single experts."""
    if not any(is_stack(tensor.name) for tensor in task.model.tensors):
        raise PlanError("types per expert: no tensor of this model holds routed experts")
    sensitivity = task.sensitivity
    if sensitivity is None and task.statistics is None:
        raise PlanError(
            "types per expert follow how a text is routed: give --imatrix or --sensitivity, which "
            "`gemcut quantize --measure` makes both"
        )
    if sensitivity and not any(tensor.experts for tensor in sensitivity.tensors.values()):
        raise SensitivityError(
            "types per expert: the sensitivity says nothing of single experts; it was measured by "
            "an earlier gemcut, or without an importance matrix: `gemcut measure --imatrix` anew"
        )
