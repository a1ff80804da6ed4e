FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y nginx-light
STOPSIGNAL SIGQUIT
COPY start.sh /usr/local/bin/start.sh
ENTRYPOINT ["/usr/local/bin/start.sh"]
