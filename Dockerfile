# The image is the static binary and nothing else: make image builds both. For another machine's architecture build the
# binary first, with GOARCH set.
FROM scratch
ARG VERSION=devel
LABEL org.opencontainers.image.title="regd" \
      org.opencontainers.image.description="A service registry that survives its nodes." \
      org.opencontainers.image.source="https://github.com/regd-io/regd" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY bin/regd /regd
# Its data is kept here: mount a volume that this user may write.
COPY --chown=65532:65532 deploy/data /var/lib/regd
USER 65532:65532
VOLUME /var/lib/regd
ENV REGD_DATA_DIR=/var/lib/regd/node
EXPOSE 7400 7401 7402
# Live, not ready: how the others are is no reason to replace this one.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/regd", "health", "live"]
ENTRYPOINT ["/regd"]
CMD ["serve"]
