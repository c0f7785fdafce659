"""Times routing at the width of a 7B base: `python -m benchmarks.routing_scale [--rows 1000 10000 100000]`

W_merge has random rows of width h = 11,008. Routing uses the product's own functions: whitened keys (500 axes, as a
guard of 2,000 prompts gives), one product, bias, maximum, theta. Prints milliseconds per query, alone and in a batch of
16 (medians of 10 runs), and the size of W_merge. On a GPU, a million bfloat16 rows fit:
`--device cuda --dtype bfloat16 --rows 1000 100000 1000000`.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.measuring import make_parser, median_seconds, peak_megabytes
from benchmarks.page import report
from scen_cli.model.routing import Whitening, choose, prepare_keys

H, AXES, THETA = 11008, 500, 0.45


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    generator = torch.Generator(options.device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=options.device, generator=generator)

    axes = torch.linalg.qr(random(H, AXES)).Q.T.contiguous()
    whitening = Whitening(random(H), axes, -torch.rand(AXES, device=options.device, generator=generator))
    found = []
    for rows in options.rows:
        neurons = torch.empty(rows, H, dtype=dtype, device=options.device)
        for chunk in neurons.split(10_000):
            chunk.copy_(torch.nn.functional.normalize(random(*chunk.shape), dim=1))
        biases = torch.zeros(rows, device=options.device)
        row = {"rows": rows, "megabytes": neurons.nbytes / 1e6}
        for batch in (1, 16):
            route = partial(_route, random(batch, H), neurons, biases, whitening)
            row[f"ms_{batch}"] = 1000 * median_seconds(route, 10) / batch
        found.append(row)
    metadata = {"device": options.device, "dtype": options.dtype, "h": H, "seed": 0}
    report("routing_scale", {**metadata, "found": found}, options.json)
    print(f"{options.device}, {options.dtype}, h = {H}; peak memory {peak_megabytes():.0f} MB")


def _route(keys: torch.Tensor, neurons: torch.Tensor, biases: torch.Tensor, whitening: Whitening) -> list[int]:
    prepared = prepare_keys(keys, cosine=True, whitening=whitening).to(neurons.dtype)
    activations = (prepared @ neurons.T).float() - biases
    return choose(activations, THETA).tolist()  # waits for the device


if __name__ == "__main__":
    main()
