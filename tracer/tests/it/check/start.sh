#!/bin/sh
set -e
envsubst < /etc/nginx/nginx.conf.in > /etc/nginx/nginx.conf
nginx -g 'daemon off;'
