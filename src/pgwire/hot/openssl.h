/* The system's OpenSSL 3, found at run time: no development headers are needed to build, and the library is the one
   that the operating system updates. Only stable, documented functions are named here. */
#ifndef PGLEASH_OPENSSL_H
#define PGLEASH_OPENSSL_H
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

typedef struct {
    void *(*TLS_server_method)(void);
    void *(*TLS_client_method)(void);
    void *(*SSL_CTX_new)(const void *);
    void (*SSL_CTX_free)(void *);
    long (*SSL_CTX_ctrl)(void *, int, long, void *);
    unsigned long (*SSL_CTX_set_options)(void *, unsigned long);
    int (*SSL_CTX_use_certificate_chain_file)(void *, const char *);
    int (*SSL_CTX_use_PrivateKey_file)(void *, const char *, int);
    int (*SSL_CTX_check_private_key)(const void *);
    int (*SSL_CTX_load_verify_locations)(void *, const char *, const char *);
    int (*SSL_CTX_set_default_verify_paths)(void *);
    void (*SSL_CTX_set_verify)(void *, int, void *);
    int (*SSL_CTX_set_cipher_list)(void *, const char *);
    int (*SSL_CTX_set_ciphersuites)(void *, const char *);
    int (*SSL_CTX_set_num_tickets)(void *, size_t);
    void (*SSL_CTX_set_default_read_buffer_len)(void *, size_t);
    void (*SSL_CTX_set_alpn_select_cb)(void *, int (*)(void *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *), void *);
    int (*SSL_CTX_set_alpn_protos)(void *, const unsigned char *, unsigned int);
    void *(*SSL_CTX_get0_certificate)(const void *);
    void *(*SSL_new)(void *);
    void (*SSL_free)(void *);
    int (*SSL_set_fd)(void *, int);
    void (*SSL_set_accept_state)(void *);
    void (*SSL_set_connect_state)(void *);
    int (*SSL_do_handshake)(void *);
    int (*SSL_read)(void *, void *, int);
    int (*SSL_write)(void *, const void *, int);
    int (*SSL_get_error)(const void *, int);
    int (*SSL_has_pending)(const void *);
    int (*SSL_shutdown)(void *);
    long (*SSL_ctrl)(void *, int, long, void *);
    void *(*SSL_get0_param)(void *);
    int (*SSL_set1_host)(void *, const char *);
    void *(*SSL_get1_peer_certificate)(const void *);
    const char *(*SSL_get_version)(const void *);
    long (*SSL_get_verify_result)(const void *);
    void (*SSL_get0_alpn_selected)(const void *, const unsigned char **, unsigned int *);
    int (*X509_VERIFY_PARAM_set1_ip_asc)(void *, const char *);
    const char *(*X509_verify_cert_error_string)(long);
    int (*i2d_X509)(const void *, unsigned char **);
    void (*X509_free)(void *);
    void (*CRYPTO_free)(void *, const char *, int);
    unsigned long (*ERR_get_error)(void);
    void (*ERR_error_string_n)(unsigned long, char *, size_t);
    void (*ERR_clear_error)(void);
} OpenSSL;

static OpenSSL openssl_table;
static char openssl_problem[256];

static int openssl_load(void) {
    void *crypto = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
    void *ssl = crypto ? dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!ssl) {
        const char *why = dlerror();
        strncpy(openssl_problem, why ? why : "libssl.so.3 not found", sizeof openssl_problem - 1);
        return -1;
    }
#define FIND(lib, name) if (!(*(void **)&openssl_table.name = dlsym(lib, #name))) { strncpy(openssl_problem, "missing " #name, sizeof openssl_problem - 1); return -1; }
    FIND(ssl, TLS_server_method) FIND(ssl, TLS_client_method) FIND(ssl, SSL_CTX_new) FIND(ssl, SSL_CTX_free) FIND(ssl, SSL_CTX_ctrl)
    FIND(ssl, SSL_CTX_set_options) FIND(ssl, SSL_CTX_use_certificate_chain_file) FIND(ssl, SSL_CTX_use_PrivateKey_file)
    FIND(ssl, SSL_CTX_check_private_key) FIND(ssl, SSL_CTX_load_verify_locations) FIND(ssl, SSL_CTX_set_default_verify_paths)
    FIND(ssl, SSL_CTX_set_verify) FIND(ssl, SSL_CTX_set_cipher_list) FIND(ssl, SSL_CTX_set_ciphersuites) FIND(ssl, SSL_CTX_set_num_tickets)
    FIND(ssl, SSL_CTX_set_default_read_buffer_len)
    FIND(ssl, SSL_CTX_set_alpn_protos) FIND(ssl, SSL_CTX_get0_certificate) FIND(ssl, SSL_CTX_set_alpn_select_cb) FIND(ssl, SSL_new) FIND(ssl, SSL_free) FIND(ssl, SSL_set_fd) FIND(ssl, SSL_set_accept_state)
    FIND(ssl, SSL_set_connect_state) FIND(ssl, SSL_do_handshake) FIND(ssl, SSL_read) FIND(ssl, SSL_write) FIND(ssl, SSL_get_error)
    FIND(ssl, SSL_has_pending) FIND(ssl, SSL_shutdown) FIND(ssl, SSL_ctrl) FIND(ssl, SSL_get0_param) FIND(ssl, SSL_set1_host)
    FIND(ssl, SSL_get1_peer_certificate) FIND(ssl, SSL_get_version) FIND(ssl, SSL_get_verify_result) FIND(ssl, SSL_get0_alpn_selected)
    FIND(crypto, X509_VERIFY_PARAM_set1_ip_asc) FIND(crypto, X509_verify_cert_error_string) FIND(crypto, i2d_X509) FIND(crypto, X509_free)
    FIND(crypto, CRYPTO_free) FIND(crypto, ERR_get_error) FIND(crypto, ERR_error_string_n) FIND(crypto, ERR_clear_error)
#undef FIND
    return 0;
}

/* PostgreSQL's registered ALPN name (protocol chapter, "Direct TLS"). */
static int openssl_alpn(void *ssl, const unsigned char **out, unsigned char *outlen, const unsigned char *in, unsigned int inlen, void *arg) {
    (void)ssl; (void)arg;
    for (unsigned int i = 0; i < inlen; i += in[i] + 1u)
        if (in[i] == 10 && i + 10 < inlen + 0u && memcmp(in + i + 1, "postgresql", 10) == 0) { *out = in + i + 1; *outlen = 10; return 0; }
    return 2; /* SSL_TLSEXT_ERR_ALERT_FATAL */
}
#endif
