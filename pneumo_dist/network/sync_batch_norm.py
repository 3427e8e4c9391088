"""Batch norm over the films of all ranks, for equal numbers of films, without a wait for the device.

torch's SyncBatchNorm allows ranks to hold different numbers of films. It gathers each rank's statistics and selects
those of ranks with films, which makes the host wait for the GPU three times per layer and pass. The trainer's ranks
hold equally many, so one sum per layer and pass suffices.
"""

from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from shards.errors import InputError

Tensor = torch.Tensor


def synchronised(model: nn.Module) -> nn.Module:
    """Replace a model's batch norms by synchronised ones with the same names, weights and buffers; return the model.

    Raises InputError for a batch norm that does more than normalise, such as timm's with an activation.
    """
    if type(model) is nn.BatchNorm2d:
        return SyncBatchNorm.of(model)
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        raise InputError(
            f"model.sync_batch_norm: {type(model).__name__} cannot be synchronised; set it to false, or choose another "
            "model.encoder"
        )
    for name, child in model.named_children():
        changed = synchronised(child)
        if changed is not child:
            setattr(model, name, changed)
    return model


def norm_statistics(model: nn.Module, films: int, world: int) -> str | None:
    """Return over how many films a model's batch norms take their statistics, None without batch norms."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return None
    if isinstance(norms[0], SyncBatchNorm):
        return f"{world * films} films, {films} on each of {world} ranks"
    return f"{films} film{'s' * (films != 1)}{' of each rank' * (world > 1)}"


class SyncBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are over the films of all ranks, which must hold equally many.

    It computes in float32 at least. Outside of training it is nn.BatchNorm2d.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Self:
        """Return a synchronised norm that takes over a norm's weights and buffers."""
        assert norm.affine and norm.track_running_stats and norm.momentum is not None, "not a norm of our networks"
        made = cls(norm.num_features, norm.eps, norm.momentum)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise images (n, channels, rows, columns)."""
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        output: Tensor
        output, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        count = dist.get_world_size() * input.numel() // input.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / max(count - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return output


class _Normalise(torch.autograd.Function):
    """Normalisation with statistics over all ranks; also returns their mean and biased variance, float64 (channels,).

    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, with the sums of its section 3 taken over all ranks.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        images = _dense(images)
        mean, variance = _statistics(images, eps)
        # A variance over ranks is the mean of variances plus the variance of means. In float64 nothing cancels.
        sums = torch.stack([mean, variance, mean.square()])
        dist.all_reduce(sums)
        mean, variance, square = sums / dist.get_world_size()
        variance = (variance + square - mean.square()).clamp_(min=0)
        kind = _kind(images)
        center, inverse = mean.to(kind), (variance + eps).rsqrt().to(kind)
        ctx.save_for_backward(images, weight, center, inverse)
        ctx.mark_non_differentiable(mean, variance)
        if _has_kernels(images):
            return torch.batch_norm_elemt(images, weight, bias, center, inverse, eps), mean, variance
        scale = inverse * weight
        normalised = images * _wide(scale) + _wide(bias - center * scale)
        return normalised.to(images.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        images, weight, center, inverse = ctx.saved_tensors
        world = dist.get_world_size()
        if _has_kernels(images):
            gradient = _dense(gradient)
            products = torch.batch_norm_backward_reduce(gradient, images, center, inverse, weight, True, True, True)
            sums, own_weight, own_bias = torch.stack(products[:2]), *products[2:]
            dist.all_reduce(sums)
            pixels = images.numel() // images.shape[1]
            counts = torch.full((world,), pixels, dtype=torch.int32, device=images.device)
            own = torch.batch_norm_backward_elemt(gradient, images, center, inverse, weight, sums[0], sums[1], counts)
            return own, own_weight, own_bias, None
        count = world * images.numel() // images.shape[1]
        normalised = (images - _wide(center)) * _wide(inverse)
        wide = gradient.to(normalised.dtype)
        own_bias, own_weight = wide.sum((0, 2, 3)), (wide * normalised).sum((0, 2, 3))
        sums = torch.stack([own_bias, own_weight])
        dist.all_reduce(sums)
        all_bias, all_weight = sums / count
        own = (wide - _wide(all_bias) - normalised * _wide(all_weight)) * _wide(inverse * weight)
        return own.to(images.dtype), own_weight, own_bias, None


def _statistics(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return this rank's mean and biased variance by channel, in float64."""
    if _has_kernels(images):
        mean, inverse = torch.batch_norm_stats(images, eps)
        return mean.double(), inverse.double().pow(-2) - eps
    variance, mean = torch.var_mean(images.to(_kind(images)), (0, 2, 3), correction=0)
    return mean.double(), variance.double()


def _has_kernels(images: Tensor) -> bool:
    """Return whether torch's kernels for synchronised batch norm are used: on GPUs, where nothing is compiled."""
    return images.is_cuda and not torch.compiler.is_compiling()


def _dense(images: Tensor) -> Tensor:
    """Return images in one of the layouts that the kernels read."""
    return images if images.is_contiguous(memory_format=torch.channels_last) else images.contiguous()


def _kind(images: Tensor) -> torch.dtype:
    return torch.promote_types(images.dtype, torch.float32)


def _wide(values: Tensor) -> Tensor:
    """Return values by channel in a shape that broadcasts to images."""
    return values[:, None, None]
