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
    PYTHONDONTWRITEBYTECODE=1 \
    QUARANTINE_DIR=/var/lib/trade-stream/quarantine
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv/trade-stream
COPY app app
# A volume is writable where the image is read-only, and begins with the owner of its folder.
RUN install -d -m 700 -o 10001 -g 10001 "$QUARANTINE_DIR"
VOLUME $QUARANTINE_DIR
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 9464
# Alive or hung, where HEALTH_PORT is set, and not 0, which is any; a broker that is away is no reason
# to be restarted.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, http.client as h; port = int(os.environ.get('HEALTH_PORT') or 0); c = h.HTTPConnection(os.environ.get('HEALTH_HOST') or '127.0.0.1', port, timeout=3); port and c.request('GET', '/livez'); exit(port and c.getresponse().status != 200)"]
# SIGTERM, the default stop signal, lets a consumer finish and commit what it has in hand.
CMD ["python", "app/consumer.py"]
