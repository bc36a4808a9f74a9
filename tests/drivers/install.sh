#!/bin/sh
# Installs the drivers that are not Python packages: Debian's as root, npm's into the directory given. Never fails: what is
# missing afterwards is skipped by the tests with its reason. Never add here: anything outside Debian's and npm's own clients.
npm_directory=$1

debian="postgresql-15 postgresql-client-15 libpostgresql-jdbc-java default-jdk-headless libdbd-pg-perl ruby-pg php-cli php-pgsql golang-go
golang-github-lib-pq-dev unixodbc odbcinst odbc-postgresql nodejs npm"

have() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

wanted() {
    for package in $debian; do
        case $package in
        nodejs | npm) command -v node >/dev/null && command -v npm >/dev/null && continue ;;
        default-jdk-headless) command -v javac >/dev/null && continue ;;
        postgresql-15 | postgresql-client-15) [ -x /usr/lib/postgresql/15/bin/psql ] && have postgresql-client-15 && continue ;;
        esac
        have "$package" || echo "$package"
    done
}

if command -v apt-get >/dev/null; then
    missing=$(wanted)
    if [ -n "$missing" ] && [ "$(id -u)" = 0 ]; then
        export DEBIAN_FRONTEND=noninteractive
        # The server's programs are wanted, not a server that runs.
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
        fi
        apt-get update -qq || echo "drivers: apt-get update failed"
        for package in $missing; do # one by one: a release that lacks one of them has the others
            apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 || echo "drivers: $package can't be installed"
        done
    elif [ -n "$missing" ]; then
        echo "drivers: not root, so these Debian packages stay away:" $missing
    fi
else
    echo "drivers: no apt-get here, so Debian's drivers are skipped"
fi

if command -v npm >/dev/null; then
    mkdir -p "$npm_directory"
    for package in pg pg-cursor pg-copy-streams postgres; do
        [ -d "$npm_directory/node_modules/$package" ] && continue
        npm install --silent --no-audit --no-fund --prefix "$npm_directory" "$package" >/dev/null 2>&1 || echo "drivers: npm has no $package"
    done
else
    echo "drivers: no npm here, so Node's drivers are skipped"
fi
exit 0
