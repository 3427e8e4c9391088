"""Peak rates of GPUs, from their data sheets."""

from dataclasses import dataclass

import torch

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Card:
    """Peaks of a GPU: TFLOP/s of dense matrix products by data type, and memory bandwidth in GB/s.

    `half` is bf16 and fp16 with float32 accumulation; `float32` is IEEE, without tensor cores. Data sheets list
    tensor-core rates with sparsity, which are twice these.
    """

    half: float
    tf32: float
    float32: float
    bandwidth: float
    source: str

    def flops_per_s(self, dtype: torch.dtype, tf32: bool) -> float:
        """Return the peak FLOP/s of products of this type; `tf32` allows TF32 for float32."""
        if dtype in (torch.bfloat16, torch.float16):
            return self.half * TERA
        return (self.tf32 if tf32 else self.float32) * TERA

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth * GIGA


_H100 = "NVIDIA H100 Tensor Core GPU data sheet (2023)"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet (2024)"
_A100 = "NVIDIA A100 Tensor Core GPU data sheet (2022)"
# Keyed by torch.cuda.get_device_name. A MIG slice of a card has another name and is not in this table.
CARDS = {
    "NVIDIA H100 80GB HBM3": Card(989.4, 494.7, 66.9, 3350, f"{_H100}, SXM"),
    "NVIDIA H100 PCIe": Card(756, 378, 51, 2000, f"{_H100}, PCIe"),
    "NVIDIA H100 NVL": Card(835.5, 417.5, 60, 3900, f"{_H100}, NVL"),
    "NVIDIA H200": Card(989.4, 494.7, 66.9, 4800, f"{_H200}, SXM"),
    "NVIDIA A100-SXM4-80GB": Card(312, 156, 19.5, 2039, f"{_A100}, 80 GB SXM"),
    "NVIDIA A100 80GB PCIe": Card(312, 156, 19.5, 1935, f"{_A100}, 80 GB PCIe"),
    "NVIDIA A100-SXM4-40GB": Card(312, 156, 19.5, 1555, "NVIDIA A100 Tensor Core GPU data sheet (2020), 40 GB"),
    "NVIDIA A100-PCIE-40GB": Card(312, 156, 19.5, 1555, "NVIDIA A100 Tensor Core GPU data sheet (2020), 40 GB"),
    "NVIDIA L40S": Card(362.05, 183, 91.6, 864, "NVIDIA L40S data sheet (2023)"),
    "NVIDIA L4": Card(121, 60, 30.3, 300, "NVIDIA L4 Tensor Core GPU data sheet (2023)"),
}


def card_of(name: str, peaks: str | None = None) -> Card | None:
    """Return a card's peaks by its name, None for an unknown card.

    `peaks` overrides the table: TFLOP/s of half, TF32 and IEEE float32 products, and GB/s, separated by commas. Raises
    ValueError for any other number of values.
    """
    if peaks is None:
        return CARDS.get(name)
    half, tf32, float32, bandwidth = map(float, peaks.split(","))
    return Card(half, tf32, float32, bandwidth, "given by hand")
