"""Signatures of versions, as OpenSSF Model Signing (https://github.com/sigstore/model-transparency) makes them.

A version is signed when it is registered, and its signature is stored with it. Before a file of it is used, the
signature is compared with the digests that the ledger recorded; the files themselves are compared with these in any
case, so that nothing is read twice. The library takes a second to import: `versions` imports `_bundles`, which uses it,
only for a signature that this machine has not verified yet.
"""

__all__ = ["versions"]
