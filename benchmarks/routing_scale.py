"""Routing at the width of a 7B: `python -m benchmarks.routing_scale [--rows 1000 10000 100000] [--device cuda]`

W_merge of random rows of 11,008, by the product's own functions: keys whitened (500 axes, as a guard of 2,000 prompts
gives), one product, bias, maximum, theta. Milliseconds for a query alone and in a batch of 16, medians of 10; and the
bytes W_merge takes. On a GPU rows may be bfloat16, and a million of them fit: `--device cuda --dtype bfloat16`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from benchmarks.measuring import median_seconds, peak_megabytes, show, write
from scen_cli.model.routing import Whitening, choose, prepare

H, AXES, THETA = 11008, 500, 0.45


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    generator = torch.Generator(chosen.device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=chosen.device, generator=generator)

    axes = torch.linalg.qr(random(H, AXES)).Q.T.contiguous()
    whitening = Whitening(random(H), axes, -torch.rand(AXES, device=chosen.device, generator=generator))
    found = []
    for rows in chosen.rows:
        neurons = torch.empty(rows, H, dtype=dtype, device=chosen.device)
        for some in neurons.split(10_000):
            some.copy_(torch.nn.functional.normalize(random(*some.shape), dim=1))
        biases = torch.zeros(rows, device=chosen.device)
        one = {"rows": rows, "megabytes": neurons.nbytes / 1e6}
        for batch in (1, 16):
            keys = random(batch, H)

            route = partial(_route, keys, neurons, biases, whitening)
            one[f"ms_{batch}"] = 1000 * median_seconds(route, 10) / batch
        found.append(one)
    show(
        f"{chosen.device}, {chosen.dtype}, h = {H}: milliseconds per query",
        ["rows#", "W_merge MB#", "alone#", "in a batch of 16#"],
        [[f"{f['rows']:,}", f"{f['megabytes']:.0f}", f"{f['ms_1']:.2f}", f"{f['ms_16']:.2f}"] for f in found],
    )
    print(f"peak memory {peak_megabytes():.0f} MB")
    write(chosen.json, {"device": chosen.device, "dtype": chosen.dtype, "h": H, "seed": 0, "found": found})


def _route(keys: torch.Tensor, neurons: torch.Tensor, biases: torch.Tensor, whitening: Whitening) -> list[int]:
    prepared = prepare(keys, cosine=True, whitening=whitening).to(neurons.dtype)
    activations = (prepared @ neurons.T).float() - biases
    return choose(activations, THETA).tolist()  # waits for the device


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
