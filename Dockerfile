# The gateway, and workers on CPUs; on GPUs they are of Dockerfile.gpu. Nobody publishes images: build and push your own.
#
#   docker build -t REGISTRY/remontoir:0.1.0 .
#   docker run --read-only --tmpfs /tmp -v $PWD/models:/models:ro -v remontoir:/cache -p 8000:8000 \
#       REGISTRY/remontoir:0.1.0 serve --models /models --host 0.0.0.0 --insecure    # or --tenants FILE
#
# BASE   a Debian with Python 3.11 or newer as python3, with venv and pip; by digest, if it should never change
# CORE   compiled (the scheduling core as C, three times as fast) or pure
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
ARG CORE=compiled
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DEBIAN_FRONTEND=noninteractive
SHELL ["/bin/sh", "-euc"]
# The compiler is of this stage alone, and of whichever version the base has.
# hadolint ignore=DL3008
RUN if [ "$CORE" = compiled ]; then \
        apt-get update; \
        apt-get install -y --no-install-recommends gcc libc6-dev; \
        python3 -c 'import sys, sysconfig, pathlib; \
            sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' \
            || apt-get install -y --no-install-recommends python3-dev; \
        rm -rf /var/lib/apt/lists/*; \
    fi
RUN python3 -m venv /opt/build; python3 -m venv --without-pip /opt/remontoir
WORKDIR /src
COPY requirements-image.txt requirements-compile.txt ./
RUN /opt/build/bin/pip install --require-hashes -r requirements-compile.txt; \
    /opt/build/bin/pip --python /opt/remontoir/bin/python install --require-hashes -r requirements-image.txt
COPY . .
RUN REMONTOIR_BUILD="$CORE" /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index -w /wheels .; \
    /opt/build/bin/pip --python /opt/remontoir/bin/python install --no-deps --no-index /wheels/*.whl; \
    /opt/remontoir/bin/remontoir version

FROM ${BASE}
LABEL org.opencontainers.image.title=remontoir \
      org.opencontainers.image.description="An inference gateway that keeps time" \
      org.opencontainers.image.licenses=Apache-2.0
RUN groupadd --gid 10001 remontoir \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin remontoir \
    && install -d -o 10001 -g 10001 /cache
COPY --from=build /opt/remontoir /opt/remontoir
# Nothing is written but below /tmp and /cache: the root file system may be read-only.
ENV PATH=/opt/remontoir/bin:$PATH REMONTOIR_CACHE_DIR=/cache HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000 7000
ENTRYPOINT ["remontoir"]
CMD ["--help"]
