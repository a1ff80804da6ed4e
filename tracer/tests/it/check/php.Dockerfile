FROM php:8.3-fpm-alpine
RUN docker-php-ext-install opcache
STOPSIGNAL SIGTERM
