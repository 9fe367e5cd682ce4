/*
 * The yardstick of a gate: libmilter in front of next to nothing. It answers
 * every recipient as popgate does in this benchmark, but by comparing bytes
 * that are written here: no table, no clock, no log, nothing that changes. So
 * what it costs is what libmilter and the kernel cost.
 *
 * usage: gate SOCKET
 */
#include <sys/types.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <libmilter/mfapi.h>

/* Clients in 11.0.0.0/8 hold a grant. */
static int granted(const _SOCK_ADDR *addr)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)addr;

	if (addr == NULL || addr->sa_family != AF_INET)
		return 0;
	return ntohl(in->sin_addr.s_addr) >> 24 == 11;
}

static sfsistat on_connect(SMFICTX *ctx, char *host, _SOCK_ADDR *addr)
{
	static char yes;

	(void)host;
	smfi_setpriv(ctx, granted(addr) ? &yes : NULL);
	return SMFIS_CONTINUE;
}

static sfsistat on_rcpt(SMFICTX *ctx, char **argv)
{
	const char *at = strrchr(argv[0], '@');

	if (at != NULL && strncmp(at, "@local.test", 11) == 0)
		return SMFIS_CONTINUE;
	if (smfi_getpriv(ctx) != NULL)
		return SMFIS_CONTINUE;
	smfi_setreply(ctx, "550", "5.7.1", "Relaying denied");
	return SMFIS_REJECT;
}

static sfsistat on_close(SMFICTX *ctx)
{
	smfi_setpriv(ctx, NULL);
	return SMFIS_CONTINUE;
}

int main(int argc, char **argv)
{
	struct smfiDesc filter = {
		.xxfi_name = "yardstick",
		.xxfi_version = SMFI_VERSION,
		.xxfi_connect = on_connect,
		.xxfi_envrcpt = on_rcpt,
		.xxfi_close = on_close,
	};

	if (argc != 2) {
		fprintf(stderr, "usage: gate SOCKET\n");
		return 2;
	}
	if (smfi_register(filter) != MI_SUCCESS || smfi_setconn(argv[1]) != MI_SUCCESS ||
	    smfi_setbacklog(1024) != MI_SUCCESS) {
		fprintf(stderr, "gate: libmilter takes no socket %s\n", argv[1]);
		return 1;
	}
	return smfi_main() == MI_SUCCESS ? 0 : 1;
}
