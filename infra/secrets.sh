# The secrets of a stack; source it. Files have mode 0600 and belong to the user given, so that containers read them.

make_secrets() {  # FOLDER OWNER: new random secrets in place of those that are missing
  local folder=$1 owner=$2 key secret password
  mkdir -p "$folder"
  chmod 700 "$folder"
  (
    umask 077
    if [ ! -s "$folder/ray_token" ]; then
      printf '%s' "$(random_hex 32)" >"$folder/ray_token"
    fi
    if [ ! -s "$folder/aws" ] || [ ! -s "$folder/s3_identities" ]; then
      key=$(random_hex 10) secret=$(random_hex 20)
      printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" >"$folder/aws"
      printf '{"identities": [{"name": "genmod", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": %s}]}\n' \
        "$key" "$secret" '["Admin", "Read", "List", "Tagging", "Write"]' >"$folder/s3_identities"
    fi
    if [ ! -s "$folder/postgres_password" ] || [ ! -s "$folder/pgpass" ]; then # the database keeps its first one
      password=$(random_hex 20)
      printf '%s\n' "$password" >"$folder/postgres_password"
      printf '*:*:*:mlflow:%s\n' "$password" >"$folder/pgpass"
    fi
  )
  chown "$owner" "$folder"/*
}

random_hex() {  # BYTES
  od -An -N "$1" -t x1 /dev/urandom | tr -d ' \n'
}
