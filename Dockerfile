# Stillhouse with all that `stillhouse accelerate` needs on a processor. Once built, it needs no network.
# The first stage has the C compiler that attention in int8 needs.
FROM python:3.11 AS build
WORKDIR /opt/stillhouse
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
WORKDIR /opt/stillhouse
COPY constraints.txt ./
COPY --from=build /wheels ./
RUN pip install --no-cache-dir --constraint constraints.txt "$(echo ./*.whl)[accelerate]"

# Any user may run it, so nobody's home is written to; log lines appear as they are printed.
ENV HOME=/tmp PYTHONUNBUFFERED=1
# Every program of the image runs without telemetry, not only Stillhouse, which sets the same.
ENV ORT_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_TELEMETRY=1
USER 1000:1000
WORKDIR /work
CMD ["stillhouse", "--help"]
