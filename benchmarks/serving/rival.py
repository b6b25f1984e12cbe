"""What one writes first: FastAPI around a pipeline. `python -m benchmarks.serving.rival async|def PORT`.

One worker, one picture for each request, a lock around the pipeline; it speaks OpenAI's images.
"""

import argparse
from base64 import b64encode
from threading import Lock
from time import time
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

import stillhouse
from stillhouse.images.formats import encode_image

HANDLERS = ("async", "def")


class FastApiGeneration(BaseModel):
    """A request, as the server of Stillhouse reads it, as far as both know it."""

    prompt: str
    model: str | None = None
    n: int = Field(default=1, ge=1, le=1)
    size: str | None = None
    seed: int = Field(default=0, ge=0)
    steps: int | None = Field(default=None, ge=1, le=150)
    guidance: float | None = Field(default=None, ge=0)


def make_app(handler: str) -> FastAPI:
    """The application: drawing blocks the loop ("async") or one of its threads ("def")."""
    pipeline = stillhouse.load("shapes")
    pipeline.generate("", steps=1)
    turn = Lock()

    def drawn(asked: FastApiGeneration) -> dict[str, Any]:
        with turn:
            result = pipeline.generate(asked.prompt, seed=asked.seed, steps=asked.steps, guidance=asked.guidance)
        content = encode_image(result.image, "png", result.request, "shapes")
        return {"created": int(time()), "data": [{"b64_json": b64encode(content).decode("ascii")}]}

    async def blocking(asked: FastApiGeneration) -> dict[str, Any]:
        return drawn(asked)

    async def health() -> dict[str, str]:
        return {"status": "ready"}

    app = FastAPI()
    app.get("/health")(health)
    app.post("/v1/images/generations")(blocking if handler == "async" else drawn)
    return app


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("way", choices=HANDLERS)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    uvicorn.run(make_app(arguments.way), host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
