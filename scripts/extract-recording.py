"""Write the recorded answers that the package ships, from a folder with the two extracts of ZeroEval's CRUX results.

    python scripts/extract-recording.py FOLDER [OUT]

FOLDER holds `zeroeval_crux_raw_json_outputs.jsonl.gz` (100 questions, the raw replies of 12 models),
`zeroeval_crux.jsonl.gz` (the extracted answers of 51 models), `manifest.json` (source, commit, licence, checksums, and
the order of the models) and `LICENSES/`. Same input, same lines out; the README beside them says what is in a line.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

RAW = "zeroeval_crux_raw_json_outputs.jsonl.gz"
EXTRACTED = "zeroeval_crux.jsonl.gz"
DATA = Path(__file__).resolve().parent.parent / "src/steer_llm_sdk/providers/simulated/data"
LICENCES = {"WildEval+ZeroEval.txt": "LICENSE-ZeroEval.txt", "facebookresearch+cruxeval.txt": "LICENSE-CRUXEval.txt"}


def main(folder: Path, out: Path) -> None:
    entries = {entry["file"]: entry for entry in json.loads((folder / "manifest.json").read_text("utf-8"))["files"]}
    raw, extracted = (checked_lines(folder / name, entries[name]["sha256"]) for name in (RAW, EXTRACTED))
    everyone = entries[EXTRACTED]["models"]
    verbatim = list(raw[0]["outputs"])
    if len(set(everyone)) != len(everyone) or not set(verbatim) <= set(everyone):
        raise SystemExit("the manifest's model list has a name twice, or lacks one that has raw replies")
    answers = {line["id"]: line for line in extracted}
    header = {
        "recording": "crux",
        "format": 1,
        "source": entries[RAW]["source"],
        "commit": entries[RAW]["commit"],
        "licence": entries[RAW]["licence"],
        "raw_models": verbatim,
        "extracted_models": [name for name in everyone if name not in set(verbatim)],
    }
    lines = [header, *(question(line, answers[line["id"]], everyone, verbatim) for line in raw)]
    write(out, lines)
    for source, target in LICENCES.items():
        shutil.copyfile(folder / "LICENSES" / source, out.parent / target)
    sys.stdout.write(f"{out.name}: {len(raw)} questions, {len(verbatim)} + {len(header['extracted_models'])} models\n")


def checked_lines(path: Path, sha256: str) -> list[dict[str, Any]]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{path.name} is not the file that the manifest describes (sha256 differs)")
    return [json.loads(line) for line in gzip.decompress(content).decode("utf-8").splitlines()]


def question(raw: dict[str, Any], coded: dict[str, Any], everyone: list[str], verbatim: list[str]) -> dict[str, Any]:
    """The raw replies as they are; of the other models the extracted answer, None where none could be extracted."""
    printed = str(ast.literal_eval(raw["gold"]))  # what the extraction made of every literal, the right answer included
    if list(raw["outputs"]) != verbatim or len(coded["draws"]) != len(everyone) or coded["gold"] != printed:
        raise SystemExit(f"{raw['id']}: the two extracts do not fit together")
    drawn = dict(zip(everyone, coded["draws"], strict=True))
    extracted = [
        None if draw is None else coded["values"][draw] for name, draw in drawn.items() if name not in raw["outputs"]
    ]
    return {
        "id": raw["id"],
        "question": raw["question"],
        "gold": raw["gold"],
        "raw": [raw["outputs"][name] for name in verbatim],
        "extracted": extracted,
    }


def write(out: Path, lines: list[dict[str, Any]]) -> None:
    """Without a time stamp or a file name in the header, so that the same input gives the same file."""
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as file:
        file.write(text.encode("utf-8"))
    out.write_bytes(packed.getvalue())


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else DATA / "crux.jsonl.gz")
