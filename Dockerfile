# The programs, static, on an empty base.
#
#   docker build --build-arg RELEASE="$(git describe --tags --always)" -t manifold .
ARG GO=1.26

FROM golang:${GO} AS build
ARG RELEASE=unreleased
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN mkdir /out && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.release=${RELEASE}" \
    -o /out/ ./cmd/manifold ./cmd/manifold-agent ./cmd/manifold-webhook

FROM scratch
ARG RELEASE=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="manifold" \
      org.opencontainers.image.description="CNI meta-plugin: several networks per pod, each on the device the kubelet allocated" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${RELEASE}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/ /
# The agent reads the kubelet's sockets, which are root's.
USER 0
ENTRYPOINT ["/manifold-agent"]
CMD ["serve"]
