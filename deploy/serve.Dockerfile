# With the model in models/ (`dvc repro` or `bintally pull`; `dvc unprotect models` where DVC links symbolically):
#     docker build -f deploy/serve.Dockerfile -t REGISTRY/bintally-serve:REV . && docker push REGISTRY/bintally-serve:REV
#     docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8080:8080 REGISTRY/bintally-serve:REV
# Another model: -v FOLDER:/opt/ml/model:ro. PyTorch brings CUDA, most of the image's size.
FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
WORKDIR /bintally
COPY requirements requirements
# Only the packages that serving needs, in the versions of the lock.
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements/uv.txt \
    && .venv/bin/uv pip install --python .venv/bin/python --no-cache --compile-bytecode \
        --constraints requirements/lock.txt -r requirements/serve.txt setuptools
COPY LICENSE README.md pyproject.toml ./
COPY src src
RUN .venv/bin/uv pip install --python .venv/bin/python --no-cache --compile-bytecode --no-deps --no-build-isolation .
COPY models /opt/ml/model
ENV PATH=/bintally/.venv/bin:$PATH HOME=/tmp
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready', timeout=4)"]
# SageMaker runs `docker run IMAGE serve`; further arguments go to `bintally serve`. --open, as the container's network
# decides who can connect; or set a token in BINTALLY_TOKEN.
ENTRYPOINT ["sh", "-c", "exec bintally \"$0\" --model /opt/ml/model --host 0.0.0.0 --port 8080 --open \"$@\""]
CMD ["serve"]
