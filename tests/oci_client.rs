//! The registry as the `oci-client` crate uses it: by tokens, whole blobs and streamed ones, parts, referrers.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use futures_util::TryStreamExt;
use oci::{Registry, digest, noise};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::{OciDescriptor, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn client(monolithic: bool) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        use_monolithic_push: monolithic,
        ..ClientConfig::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oci_client_crate_pushes_and_pulls() {
    let registry = Registry::with(&[("NEAP_REGISTRY_ACCESS", "token")]);
    let token = registry.daemon.ok(&["token", "create", "ci", "--role", "deployer"]).trim().to_owned();
    let auth = RegistryAuth::Basic("ci".into(), token);
    let at = |image: &str| format!("127.0.0.1:{}/{image}", registry.port).parse::<Reference>().unwrap();
    let layers = [noise(1, 3_000_000), noise(2, 100)];
    for (number, monolithic) in [false, true].into_iter().enumerate() {
        let client = client(monolithic);
        let image = at(&format!("shop/api:{number}"));
        let parts: Vec<ImageLayer> =
            layers.iter().map(|layer| ImageLayer::new(layer.clone(), LAYER.into(), None)).collect();
        let config = Config::new(format!("{{\"number\":{number}}}").into_bytes(), CONFIG.into(), None);
        client.push(&image, &parts, config, &auth, None).await.unwrap();
        let pulled = client.pull(&image, &auth, vec![LAYER]).await.unwrap();
        let mut got: Vec<Vec<u8>> = pulled.layers.iter().map(|layer| layer.data.to_vec()).collect();
        got.sort_by_key(|layer| std::cmp::Reverse(layer.len()));
        assert_eq!(got, layers);
        assert_eq!(client.fetch_manifest_digest(&image, &auth).await.unwrap(), pulled.digest.unwrap());
    }
    let client = client(false);
    let image = at("shop/api:0");
    let tags = client.list_tags(&image, &auth, Some(1), None).await.unwrap();
    assert_eq!(tags.tags, ["0"]);
    let tags = client.list_tags(&image, &auth, None, Some("0")).await.unwrap();
    assert_eq!(tags.tags, ["1"]);
    let names = client.catalog(&image, &auth, None, None).await.unwrap();
    assert_eq!(names.repositories, ["shop/api"]);

    // A stream whose digest is known at its end, a part of a blob, a blob of another repository.
    let large = noise(3, 9_000_000);
    let chunks: Vec<Result<bytes::Bytes, oci_client::errors::OciDistributionError>> =
        large.chunks(1_000_000).map(|chunk| Ok(bytes::Bytes::copy_from_slice(chunk))).collect();
    let pushed = client.push_blob_stream_chunked(&image, futures_util::stream::iter(chunks)).await.unwrap();
    assert_eq!((pushed.blob_digest.as_str(), pushed.size as usize), (digest(&large).as_str(), large.len()));
    let wanted =
        OciDescriptor { digest: pushed.blob_digest.clone(), size: large.len() as i64, ..OciDescriptor::default() };
    match client.pull_blob_stream_partial(&image, &wanted, 1_000_000, Some(10)).await.unwrap() {
        BlobResponse::Partial(part) => {
            let part: Vec<bytes::Bytes> = part.stream.try_collect().await.unwrap();
            assert!(large[1_000_000..].starts_with(&part.concat()) && !part.concat().is_empty());
        }
        BlobResponse::Full(_) => panic!("a part was asked for"),
    }
    client.mount_blob(&at("other:1"), &image, &pushed.blob_digest).await.unwrap();
    assert!(client.blob_exists(&at("other:1"), &pushed.blob_digest).await.unwrap());
    assert!(!client.blob_exists(&at("other:1"), &digest(b"none")).await.unwrap());

    // A signature of an image is found by what it is of.
    let of = client.fetch_manifest_digest(&image, &auth).await.unwrap();
    let manifest = registry.daemon.json(&["registry", "inspect", "shop/api:0", "--format", "json"]);
    let subject = OciDescriptor {
        media_type: manifest["media_type"].as_str().unwrap().into(),
        digest: of.clone(),
        size: 1,
        ..OciDescriptor::default()
    };
    client.push_blob(&image, b"{}".to_vec(), &digest(b"{}")).await.unwrap();
    let signature = OciImageManifest {
        artifact_type: Some("application/x-signature".into()),
        media_type: Some("application/vnd.oci.image.manifest.v1+json".into()),
        config: OciDescriptor { media_type: CONFIG.into(), digest: digest(b"{}"), size: 2, ..OciDescriptor::default() },
        subject: Some(subject),
        ..OciImageManifest::default()
    };
    client.push_manifest(&at("shop/api:signature"), &OciManifest::Image(signature)).await.unwrap();
    let by_digest = at(&format!("shop/api@{of}"));
    let found = client.pull_referrers(&by_digest, Some("application/x-signature")).await.unwrap();
    assert_eq!(found.manifests.len(), 1);
    assert!(client.pull_referrers(&by_digest, Some("application/x-other")).await.unwrap().manifests.is_empty());
}
