"""What we ask of a TPM 2.0: to seal a secret, to release it again, and to count wrong PINs.

The only layer that knows `tpm2_pytss`, which is imported when a TPM is first used and never before:
a vault without a TPM slot works where neither the library nor a TPM is installed.
"""
