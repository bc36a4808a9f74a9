# Two stages: the extensions are built in one, the other holds no compiler. Runs as an unprivileged user on a read-only root:
#   docker run --read-only --tmpfs /tmp -v "$PWD/etc:/etc/pgleash:ro" -v pgleash:/var/lib/pgleash -p 6432:6432 -p 6433:6433 pgleash
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/pgleash && /opt/pgleash/bin/pip install --no-cache-dir .

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/pgleash --create-home --shell /usr/sbin/nologin pgleash
COPY --from=build /opt/pgleash /opt/pgleash
ENV PATH=/opt/pgleash/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/pgleash
VOLUME /var/lib/pgleash
EXPOSE 6432 6433
ENTRYPOINT ["pgleash"]
CMD ["serve", "--config", "/etc/pgleash/pgleash.yaml"]
