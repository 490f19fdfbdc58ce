# Both programs, static, on an empty base.
#
#   docker build --build-arg RELEASE=v0.1.0 -t manifold .
FROM golang:1.26 AS build
ARG RELEASE=unreleased
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/manifold ./cmd/manifold && \
    CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.release=${RELEASE}" -o /out/manifold-agent ./cmd/manifold-agent

FROM scratch
LABEL org.opencontainers.image.title="manifold" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ /
# The agent reads the kubelet's sockets, which are root's.
USER 0
ENTRYPOINT ["/manifold-agent"]
CMD ["serve"]
