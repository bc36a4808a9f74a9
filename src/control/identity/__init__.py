"""Who acts: tokens checked against their issuers, proofs turned into principals."""
