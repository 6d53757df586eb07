"""Where a token's time goes, as a table and, with matplotlib, a picture.

python -m benchmarks.profile PICTURE.svg [options of `byhand bench`: --shape, --model, --precision, --llm ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from byhand.bench import results
from byhand.cli.main import main as byhand


def main() -> int:
    """Measure, print the table, draw the picture."""
    picture, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "profile.json"
        code = byhand(["bench", "--scenario", "profile", "--peers", "none", *options, "--out", str(out)])
        if code:
            return code
        entries = results.read(out)
    from matplotlib import pyplot as plt

    from benchmarks import plots

    figure = plots.profile(entries)
    figure.savefig(picture, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
