# Builds the image with any image builder. "make image" builds the same image without one.
#
#   docker build --build-arg RELEASE="$(git describe --tags --always)" \
#     --build-arg REVISION="$(git rev-parse HEAD)" --build-arg CREATED="$(git log -1 --format=%ct)" -t manifold .
ARG GO=1.26

# Cross-compile on the builder's own platform.
FROM --platform=$BUILDPLATFORM golang:${GO} AS build
ARG RELEASE=unreleased
ARG CREATED=0
ARG TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
COPY deploy/image/go.mod deploy/image/go.sum deploy/image/
RUN go mod download && go mod download -C deploy/image
COPY . .
RUN go build -C deploy/image -o /image . \
    && /image root -release "${RELEASE}" -created "${CREATED}" -arch "${TARGETARCH}" /out

FROM scratch
ARG RELEASE=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="manifold" \
      org.opencontainers.image.description="CNI meta-plugin: several networks per pod, each on the device the kubelet allocated" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${RELEASE}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/ /
# The kubelet's sockets, which the agent reads, belong to root.
USER 0
ENTRYPOINT ["/manifold-agent"]
CMD ["serve"]
