"""Baseline: FastAPI around a pipeline. `python -m benchmarks.serving.rival async|def PORT`.

One worker, one image per request, a lock around the pipeline, OpenAI's Images API.
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
from stillhouse.images.files import encode_image

HANDLERS = ("async", "def")


class FastApiGeneration(BaseModel):
    """Request body, as far as it equals that of Stillhouse."""

    prompt: str
    model: str | None = None
    n: int = Field(default=1, ge=1, le=1)
    size: str | None = None
    seed: int = Field(default=0, ge=0)
    steps: int | None = Field(default=None, ge=1, le=150)
    guidance: float | None = Field(default=None, ge=0)


def make_app(handler: str) -> FastAPI:
    """Return the application. Generation blocks the event loop ("async") or a thread of its pool ("def")."""
    pipeline = stillhouse.load("shapes")
    pipeline.generate("", steps=1)
    lock = Lock()

    def generate(request: FastApiGeneration) -> dict[str, Any]:
        with lock:
            result = pipeline.generate(
                request.prompt, seed=request.seed, steps=request.steps, guidance=request.guidance
            )
        content = encode_image(result.image, "png", result.request, "shapes")
        return {"created": int(time()), "data": [{"b64_json": b64encode(content).decode("ascii")}]}

    async def blocking(request: FastApiGeneration) -> dict[str, Any]:
        return generate(request)

    async def health() -> dict[str, str]:
        return {"status": "ready"}

    app = FastAPI()
    app.get("/health")(health)
    app.post("/v1/images/generations")(blocking if handler == "async" else generate)
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
