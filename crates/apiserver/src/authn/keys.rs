//! Keys that sign and verify service-account tokens: ECDSA P-256 (ours) or RSA (kubeadm's).
//!
//! A key's ID is the base64url SHA-256 of its public key in DER, as upstream computes it, so that
//! tokens issued by a stock API server with the same `sa.key` stay valid here and the reverse.

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

pub enum SigningKey {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl SigningKey {
    pub fn from_pem(pem: &str) -> Result<Self> {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("no private key in PEM form")?;
        if let PrivateKeyDer::Pkcs1(rsa) = &key {
            return RsaKeyPair::from_der(rsa.secret_pkcs1_der()).map(SigningKey::Rsa).map_err(rejected);
        }
        let PrivateKeyDer::Pkcs8(pkcs8) = &key else {
            bail!("an EC key must be in PKCS#8 form: convert it with `openssl pkcs8 -topk8 -nocrypt`");
        };
        let der = pkcs8.secret_pkcs8_der();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
            .map(SigningKey::Ecdsa)
            .or_else(|_| RsaKeyPair::from_pkcs8(der).map(SigningKey::Rsa))
            .map_err(rejected)
    }

    pub fn algorithm(&self) -> &'static str {
        match self {
            SigningKey::Ecdsa(_) => "ES256",
            SigningKey::Rsa(_) => "RS256",
        }
    }

    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            SigningKey::Ecdsa(key) => Ok(key.sign(&random, message).map_err(|_| refused())?.as_ref().to_vec()),
            SigningKey::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(|_| refused())?;
                Ok(signature)
            }
        }
    }
}

// ring's errors do not implement std's Error in our feature set, and say no more than this.
fn rejected(error: ring::error::KeyRejected) -> anyhow::Error {
    anyhow!("neither a sound ECDSA P-256 nor a sound RSA key: {error}")
}

fn refused() -> anyhow::Error {
    anyhow!("ring refused to sign")
}

pub struct VerifyingKey {
    pub id: String,
    pub algorithm: &'static str,
    raw: Vec<u8>,
    jwk: Value,
}

impl VerifyingKey {
    /// Every public key in a PEM file; private keys and certificates in it are an error.
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>> {
        let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes());
        let keys = sections.map(|section| match section.context("damaged PEM")? {
            (SectionKind::PublicKey, der) => Self::from_der(&der),
            (kind, _) => bail!("expected public keys, found {kind:?}"),
        });
        let keys = keys.collect::<Result<Vec<_>>>()?;
        if keys.is_empty() {
            bail!("no public key in PEM form");
        }
        Ok(keys)
    }

    fn from_der(der: &[u8]) -> Result<Self> {
        let (_, info) = SubjectPublicKeyInfo::from_der(der).context("damaged public key")?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(der));
        let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (algorithm, specific) = match info.parsed().context("unknown kind of public key")? {
            PublicKey::EC(point) if point.key_size() == 256 && point.data().len() == 65 => {
                let (x, y) = point.data()[1..].split_at(32);
                ("ES256", json!({"kty": "EC", "crv": "P-256", "x": base64(x), "y": base64(y)}))
            }
            PublicKey::RSA(key) => {
                let modulus = &key.modulus[key.modulus.iter().take_while(|byte| **byte == 0).count()..];
                ("RS256", json!({"kty": "RSA", "n": base64(modulus), "e": base64(key.exponent)}))
            }
            _ => bail!("neither an ECDSA P-256 nor an RSA key"),
        };
        let mut jwk = specific;
        jwk["use"] = json!("sig");
        jwk["kid"] = json!(id);
        jwk["alg"] = json!(algorithm);
        Ok(VerifyingKey { id, algorithm, raw: info.subject_public_key.data.to_vec(), jwk })
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self.algorithm {
            "ES256" => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.raw).verify(message, signature),
            _ => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.raw).verify(message, signature),
        };
        verified.is_ok()
    }

    /// RFC 7517 form, for `/openid/v1/jwks`.
    pub fn jwk(&self) -> &Value {
        &self.jwk
    }
}
