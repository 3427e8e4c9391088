"""Copies of a model's buffers, from which they are restored after a pass that must not count."""

import torch


class KeptBuffers:
    """Copies of a model's buffers, in tensors that are allocated once.

    The buffers are gathered once too: load values into them, but do not replace them, as moving the model would.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        # One kernel copies many tensors, but only of one type.
        self._pairs = [(buffers, [torch.empty_like(each) for each in buffers]) for buffers in by_type.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers' values."""
        for buffers, copies in self._pairs:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Set the buffers to the values that were kept last."""
        for buffers, copies in self._pairs:
            torch._foreach_copy_(buffers, copies)
