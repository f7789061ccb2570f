# The image of producer and consumer. Build: docker build -t trade-stream:latest .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /build
COPY requirements/runtime.txt .
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r runtime.txt \
    && /opt/venv/bin/pip uninstall --yes pip setuptools

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="trade-stream" \
      org.opencontainers.image.description="Real-time trade streaming on Apache Kafka"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv/trade-stream
COPY app app
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
# SIGTERM, the default stop signal, lets a consumer finish and commit what it has in hand.
CMD ["python", "app/consumer.py"]
