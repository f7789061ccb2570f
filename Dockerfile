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
EXPOSE 9464
# Alive or hung, where HEALTH_PORT is set; a broker that is away is no reason to be restarted.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; port = os.environ.get('HEALTH_PORT'); port and r.urlopen(f'http://127.0.0.1:{port}/livez', timeout=3)"]
# SIGTERM, the default stop signal, lets a consumer finish and commit what it has in hand.
CMD ["python", "app/consumer.py"]
