# The server, with the CPU build of PyTorch: docker build --tag attention-sinks .
# For GPUs, build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 and run with --gpus all.
FROM python:3.13-slim AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY attention_sinks ./attention_sinks
# The lock names releases, so that an image that is built again is the same.
RUN python -m venv /opt/attention-sinks \
    && torch="$(grep '^torch==' constraints.txt)" \
    && /opt/attention-sinks/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" "$torch" \
    && /opt/attention-sinks/bin/pip install --no-cache-dir --constraint constraints.txt ".[ray]"

FROM python:3.13-slim

COPY --from=build /opt/attention-sinks /opt/attention-sinks
RUN useradd --system --uid 10001 --create-home --home-dir /home/sinks sinks \
    && install --directory --owner sinks /sessions
USER 10001
ENV PATH=/opt/attention-sinks/bin:$PATH \
    ATTENTION_SINKS_HOST=0.0.0.0 \
    ATTENTION_SINKS_PORT=8000 \
    GRADIO_ANALYTICS_ENABLED=False
VOLUME /sessions
EXPOSE 8000
HEALTHCHECK --start-period=5m --interval=30s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['ATTENTION_SINKS_PORT'] + '/health')"]
ENTRYPOINT ["attention-sinks"]
CMD ["serve", "--help"]
