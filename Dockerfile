# The two binaries and nothing else, for images of nodes (COPY --from=longshore).
# Before it: hack/build.sh
FROM scratch
COPY bin/longshore bin/longshore-shim /usr/bin/
ENTRYPOINT ["/usr/bin/longshore"]
CMD ["serve"]
