# A server in a container: docs/howto/container.md says how to run it, and how it is tested.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# For CUDA: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
RUN python -m venv /opt/esm2-features
COPY .ci/constraints.txt ./
RUN /opt/esm2-features/bin/python -m pip install --no-cache-dir \
    --index-url ${TORCH_INDEX} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY esm2_features ./esm2_features
RUN /opt/esm2-features/bin/python -m pip install --no-cache-dir -c constraints.txt \
    ".[h5,mcp,parquet,server]"
RUN install -d -o 10001 -g 10001 /data

FROM python:${PYTHON}-slim
COPY --from=build /opt/esm2-features /opt/esm2-features
COPY --from=build --chown=10001:10001 /data /data
ENV PATH=/opt/esm2-features/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/data LOGNAME=esm2 MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1 \
    ESM2_FEATURES_CACHE=/data/cache ESM2_FEATURES_HOME=/data/weights
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["esm2-features"]
CMD ["serve", "--host", "0.0.0.0", "--tokens", "/data/tokens.txt"]
