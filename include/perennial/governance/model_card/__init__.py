"""The card of a version: what is known about it, for people and for machines, and what is not known.

It is collected when the version is registered, and stored with it: as JSON, as Markdown with the metadata block of the
Hugging Face Hub, as a page, as a bill of materials (CycloneDX), and as the technical documentation of Annex IV of the
EU AI Act. What was decided since then is in the ledger, and added whenever the card is read.
"""

__all__ = [
    "annex_iv",
    "bill_of_materials",
    "collection",
    "content",
    "decisions",
    "document",
    "metadata",
    "sections",
    "stored",
    "stored_documents",
]
