# Stillhouse with all that `stillhouse accelerate` needs on a processor. Once built, it needs no network.
FROM python:3.11-slim

WORKDIR /opt/stillhouse
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt '.[accelerate]'

# Any user may run it, so nobody's home is written to; log lines appear as they are printed.
ENV HOME=/tmp PYTHONUNBUFFERED=1
# Every program of the image runs without telemetry, not only Stillhouse, which sets the same.
ENV ORT_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_TELEMETRY=1
USER 1000:1000
WORKDIR /work
CMD ["stillhouse", "--help"]
