"""Write `expected.json` anew: `python -m tests.golden.record`, after a change that is meant to alter pictures."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from stillhouse.convert.import_model import import_model
from tests.golden.pictures import CHECKPOINTS, EXPECTED, IMPORTED, PICTURES, generate, opened, summary


def main() -> None:
    """Draw every picture and keep its summary, one line for each list of numbers."""
    with TemporaryDirectory() as folder:
        directory = Path(folder, IMPORTED)
        import_model(CHECKPOINTS / IMPORTED, directory)
        models = dict.fromkeys(model for model, _ in PICTURES)
        pipelines = {model: opened(directory if model == IMPORTED else model) for model in models}
        told = {
            f"{model} {name}": summary(*generate(pipelines[model], fields))
            for (model, name), fields in PICTURES.items()
        }
    lines = [f"{json.dumps(name)}: {{{_lines(parts)}\n}}" for name, parts in told.items()]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {EXPECTED}")


def _lines(parts: dict[str, list[float]]) -> str:
    return ",".join(f"\n {json.dumps(name)}: {json.dumps(values)}" for name, values in parts.items())


if __name__ == "__main__":
    main()
