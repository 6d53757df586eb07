"""CTranslate2's Generator."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

from byhand.bench.engines import Setting, Tokens


class Adapter:
    """One generator. It wants tokens as strings; every id has one."""

    def __init__(self, setting: Setting) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(
            str(setting.converted),
            device="cpu",
            compute_type=setting.form,
            inter_threads=1,
            intra_threads=setting.threads,
        )
        self.strings = json.loads((setting.converted / "vocabulary.json").read_text(encoding="utf-8"))
        self._bytes = (setting.converted / "model.bin").stat().st_size
        self._version = f"ctranslate2 {ctranslate2.__version__}, {self.generator.compute_type}"

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """One call; its callback keeps the time of every step's last token."""
        stamps: dict[int, float] = {}

        def note(result: Any) -> bool:
            stamps[result.step] = perf_counter()
            return False

        results = self.generator.generate_batch(
            [[self.strings[token] for token in ids] for ids in prompts],
            max_length=new,
            min_length=new,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=note,
        )
        return Tokens([result.sequences_ids[0] for result in results], [stamps[step] for step in sorted(stamps)])

    def weight_bytes(self) -> int:
        """The whole file."""
        return self._bytes

    def version(self) -> str:
        """ctranslate2's, and what it computes with."""
        return self._version


def convert(folder: Path, form: str, target: Path) -> None:
    """Convert by ctranslate2's own converter, which reads the checkpoint through transformers."""
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(str(folder), copy_files=["tokenizer.json"])
    converter.convert(str(target), quantization=form, force=True)
