FROM node:22 AS assets
WORKDIR /src
COPY . .
RUN npm ci \
    && npm run build
CMD ["node"]

FROM debian:bookworm-slim
RUN apt-get update \
    # nothing else is needed
    && apt-get install -y --no-install-recommends nginx-light
COPY --from=assets /src/dist /var/www/html
EXPOSE 80
CMD ["nginx", "-g", "daemon off;"]
